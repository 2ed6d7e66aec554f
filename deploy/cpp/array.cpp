#include "array.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>

#include "error.h"

namespace {

constexpr std::uint32_t LONGEST_HEADER = 10000;  // NumPy's own bound

// The header is a Python dictionary: {'descr': '|u1', 'fortran_order': False, 'shape': (2, 28, 28), }
class Header {
 public:
  Header(std::string text, std::string path) : text_(std::move(text)), path_(std::move(path)) {}

  [[noreturn]] void fail() const { throw InputError(path_ + ": is no .npy file: its header cannot be read"); }

  // What stands between two signs behind a key.
  std::string between(const std::string& key, char first, char last) const {
    const auto begin = behind(key);
    const auto end = text_.find(last, begin + 1);
    if (text_.at(begin) != first || end == std::string::npos) fail();
    return text_.substr(begin + 1, end - begin - 1);
  }

  bool is_true(const std::string& key) const {
    const auto begin = behind(key);
    if (text_.compare(begin, 4, "True") == 0) return true;
    if (text_.compare(begin, 5, "False") != 0) fail();
    return false;
  }

  std::vector<std::int64_t> shape() const {
    std::vector<std::int64_t> shape;
    bool is_open = false;  // within a number; a comma has to come between two
    for (const char c : between("shape", '(', ')')) {
      if (c >= '0' && c <= '9') {
        if (!is_open) shape.push_back(0);
        is_open = true;
        if (shape.back() > std::numeric_limits<std::int32_t>::max() / 10) throw InputError(path_ + ": its shape is too large");
        shape.back() = 10 * shape.back() + (c - '0');
      } else if (c == ',') {
        if (!is_open) fail();
        is_open = false;
      } else if (c != ' ' || is_open) {
        fail();
      }
    }
    return shape;
  }

 private:
  std::size_t behind(const std::string& key) const {
    const auto found = text_.find("'" + key + "':");
    const auto begin = found == std::string::npos ? found : text_.find_first_not_of(' ', found + key.size() + 3);
    if (begin == std::string::npos || text_.find('}') == std::string::npos) fail();
    return begin;
  }

  std::string text_, path_;
};

at::ScalarType type_of(const std::string& description, const std::string& path) {
  if (description == "|u1" || description == "<u1") return at::kByte;
  if (description == "<i8") return at::kLong;
  if (description == "<f4") return at::kFloat;
  throw InputError(path + ": has the type " + description + ", models take uint8, int64 and float32");
}

}  // namespace

at::Tensor read_array(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::error_code nothing;
  std::ifstream file;
  if (std::filesystem::is_regular_file(path, nothing)) file.open(path, std::ios::binary);
  if (!file.is_open()) throw InputError(name + ": cannot be read");
  unsigned char start[8] = {}, length[4] = {};
  file.read(reinterpret_cast<char*>(start), 8);
  const bool is_array = file && std::string(start, start + 6) == "\x93NUMPY" && start[6] >= 1 && start[6] <= 3;
  if (!is_array) throw InputError(name + ": is no .npy file");
  file.read(reinterpret_cast<char*>(length), start[6] == 1 ? 2 : 4);
  const std::uint32_t size = length[0] | length[1] << 8 | length[2] << 16 | std::uint32_t{length[3]} << 24;
  std::string text(file && size <= LONGEST_HEADER ? size : 0, ' ');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  const Header header(text, name);
  if (!file) header.fail();

  const at::ScalarType type = type_of(header.between("descr", '\'', '\''), name);
  if (header.is_true("fortran_order"))
    throw InputError(name + ": is stored column by column (Fortran order); save numpy.ascontiguousarray of it");
  const auto shape = header.shape();
  std::int64_t count = 1, largest = 1;
  for (const auto side : shape) {
    largest *= std::max<std::int64_t>(side, 1);  // torch multiplies the others of an empty array as well
    if (largest > std::numeric_limits<std::int32_t>::max()) throw InputError(name + ": its shape is too large");
    count *= side;
  }
  const auto bytes = count * static_cast<std::int64_t>(c10::elementSize(type));
  const auto there = static_cast<std::int64_t>(std::filesystem::file_size(path)) - file.tellg();
  if (there != bytes)
    throw InputError(name + ": is cut short or damaged: " + std::to_string(there) + " bytes of " + std::to_string(bytes));
  at::Tensor array = at::empty(shape, at::TensorOptions(type));
  file.read(static_cast<char*>(array.data_ptr()), bytes);
  if (!file) throw InputError(name + ": cannot be read");
  return array;
}
