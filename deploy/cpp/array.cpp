#include "array.h"

#include <ATen/ops/empty.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <regex>
#include <sstream>

#include "error.h"

namespace {

// The header is a Python dictionary: {'descr': '|u1', 'fortran_order': False, 'shape': (2, 28, 28), }
std::string field(const std::string& header, const std::string& pattern, const std::string& path) {
  std::smatch match;
  if (!std::regex_search(header, match, std::regex(pattern)))
    throw InputError(path + ": is no .npy file: its header cannot be read");
  return match[1];
}

}  // namespace

at::Tensor read_array(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) throw InputError(name + ": cannot be read");
  unsigned char start[8] = {};
  file.read(reinterpret_cast<char*>(start), 8);
  if (!file || std::string(start, start + 6) != "\x93NUMPY") throw InputError(name + ": is no .npy file");
  unsigned char length[4] = {};
  file.read(reinterpret_cast<char*>(length), start[6] == 1 ? 2 : 4);
  const std::uint32_t size = length[0] | length[1] << 8 | length[2] << 16 | std::uint32_t{length[3]} << 24;
  if (!file || size > 65536) throw InputError(name + ": is no .npy file: its header cannot be read");
  std::string header(size, ' ');
  file.read(header.data(), size);

  const std::string type = field(header, "'descr': *'([^']*)'", name);
  at::ScalarType kind;
  if (type == "|u1") kind = at::kByte;
  else if (type == "<i8") kind = at::kLong;
  else if (type == "<f4") kind = at::kFloat;
  else throw InputError(name + ": has the type " + type + ", models take uint8, int64 and float32");
  if (field(header, "'fortran_order': *(True|False)", name) == "True")
    throw InputError(name + ": is stored column by column (Fortran order); save numpy.ascontiguousarray of it");
  std::stringstream numbers(field(header, "'shape': *\\(([0-9, ]*)\\)", name));
  std::vector<std::int64_t> shape;
  std::int64_t count = 1;
  for (std::string part; std::getline(numbers, part, ',');) {
    if (part.find_first_of("0123456789") == std::string::npos) continue;
    try {
      shape.push_back(std::stoll(part));
    } catch (const std::out_of_range&) {
      throw InputError(name + ": its shape is too large");
    }
    if (shape.back() && count > std::numeric_limits<std::int32_t>::max() / shape.back())
      throw InputError(name + ": its shape is too large");
    count *= shape.back();
  }
  const auto bytes = count * static_cast<std::int64_t>(c10::elementSize(kind));
  const std::int64_t begin = file.tellg();
  const auto there = static_cast<std::int64_t>(std::filesystem::file_size(path)) - begin;
  if (there != bytes)
    throw InputError(name + ": is cut short or damaged: " + std::to_string(there) + " bytes of " + std::to_string(bytes));
  at::Tensor array = at::empty(shape, at::TensorOptions(kind));
  file.read(static_cast<char*>(array.data_ptr()), bytes);
  if (!file) throw InputError(name + ": cannot be read");
  return array;
}
