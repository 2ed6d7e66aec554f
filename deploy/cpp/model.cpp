#include "model.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <sstream>

#include "array.h"
#include "error.h"
#include "picture.h"

namespace {

constexpr std::int64_t MAX_Z = 100;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

template <typename Parts>
std::string join(const Parts& parts) {
  std::ostringstream text;
  for (const auto& part : parts) text << (text.tellp() > 0 ? ", " : "") << part;
  return text.str();
}

bool is_number(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
}

std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

at::ScalarType type_of(const std::string& input) {
  return input == "image" ? at::kByte : input == "distance" ? at::kFloat : at::kLong;
}

std::string name_of(at::ScalarType type) {
  return type == at::kByte ? "uint8" : type == at::kFloat ? "float32" : "int64";
}

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), pattern, value);
  return text;
}

}  // namespace

Model::Model(const std::filesystem::path& path) {
  std::error_code nothing;
  if (!std::filesystem::is_regular_file(path, nothing)) throw InputError(path.string() + ": there is no such file");
  if (path.extension() != ".pt2") throw InputError(path.string() + ": the name of a package ends in .pt2");
  try {
    loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path.string());
  } catch (const std::exception& error) {
    throw InputError(path.string() + ": is no package of format=aoti, or damaged: " + first_line(error));
  }
  card_ = loader_->get_metadata();
  for (const char* key : {"inputs", "outputs", "task", "layout"})
    if (!card_.count(key)) throw InputError(path.string() + ": has no card (no " + key + "): not written by src.export");
  for (const auto& line : entries("inputs")) {
    const auto space = line.find(' ');
    inputs_.push_back({line.substr(0, space), split(line.substr(std::min(space, line.size() - 1) + 1), ',')});
  }
  check_card(path.string());
}

void Model::check_card(const std::string& path) const {
  std::vector<std::string> names;
  for (const auto& input : inputs_) names.push_back(input.name);
  const bool is_regression = card_.at("task") == "regression";
  const auto& layout = card_.at("layout");
  bool fits = join(names) == (layout.empty() ? "z, edge_index, distance, num_nodes" : "image");
  fits = fits && join(entries("outputs")) == (is_regression ? "prediction" : "probabilities, logits");
  fits = fits && !entries(is_regression ? "target_names" : "class_names").empty();
  if (fits && !layout.empty()) {
    const auto& shape = inputs_[0].shape;
    fits = shape.size() == 4 && (layout == "chw" || layout == "hwc");
    for (std::size_t axis = 1; fits && axis < 4; ++axis)
      fits = is_number(shape[axis]) && shape[axis].size() < 6 && shape[axis] != "0";
    fits = fits && (shape[layout == "chw" ? 1 : 3] == "1" || shape[layout == "chw" ? 1 : 3] == "3");
  }
  if (!fits) throw InputError(path + ": its card is damaged, or of a model that this program does not know");
}

std::vector<std::string> Model::entries(const std::string& key) const {
  const auto found = card_.find(key);
  return found == card_.end() ? std::vector<std::string>() : split(found->second, '\n');
}

std::vector<at::Tensor> Model::read(const std::filesystem::path& path) const {
  std::vector<at::Tensor> arrays;
  std::error_code nothing;
  if (std::filesystem::is_directory(path, nothing)) {
    for (const auto& input : inputs_) arrays.push_back(read_array(path / (input.name + ".npy")));
    return arrays;
  }
  if (inputs_.size() != 1 || inputs_[0].name != "image") {
    std::vector<std::string> names;
    for (const auto& input : inputs_) names.push_back(input.name + ".npy");
    throw InputError(path.string() + ": the model takes a folder with " + join(names));
  }
  const auto& shape = inputs_[0].shape;
  const bool chw = card_.at("layout") == "chw";
  if (path.extension() == ".npy") {
    const at::Tensor array = read_array(path);
    return {array.dim() == 3 ? array.unsqueeze(0) : array};
  }
  const auto size = [&](int axis) { return std::stoi(shape.at(axis)); };
  const at::Tensor picture = chw ? read_picture(path, size(1), size(2), size(3)).permute({2, 0, 1})
                                 : read_picture(path, size(3), size(1), size(2));
  return {picture.unsqueeze(0)};
}

void Model::check(const std::vector<at::Tensor>& inputs) const {
  if (inputs.size() != inputs_.size())
    throw InputError("the model takes " + std::to_string(inputs_.size()) + " arrays, not " + std::to_string(inputs.size()));
  std::map<std::string, std::int64_t> lengths;
  for (std::size_t number = 0; number < inputs.size(); ++number) {
    const auto& [name, shape] = inputs_[number];
    const at::Tensor& array = inputs[number];
    if (array.scalar_type() != type_of(name))
      throw InputError(name + ": has the type " + name_of(array.scalar_type()) + ", the model takes " +
                       name_of(type_of(name)));
    bool fits = array.dim() == static_cast<std::int64_t>(shape.size());
    for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
      const std::int64_t there = array.size(static_cast<std::int64_t>(axis));
      fits = there == (is_number(shape[axis]) ? std::stoll(shape[axis]) : lengths.emplace(shape[axis], there).first->second);
    }
    if (!fits) {
      const std::string& layout = card_.at("layout");
      const std::string note = layout == "chw"   ? " (channels, height, width)"
                               : layout == "hwc" ? " (height, width, channels)"
                                                 : "";
      throw InputError(name + ": has the shape [" + join(array.sizes()) + "], the model takes [" + join(shape) + "]" + note);
    }
  }
  if (!lengths["samples"]) throw InputError("there are no samples");
  if (inputs_.size() == 4) check_crystals(inputs);
}

void Model::check_crystals(const std::vector<at::Tensor>& inputs) const {
  const at::Tensor &z = inputs[0], &edges = inputs[1], &distance = inputs[2], &nodes = inputs[3];
  // Not the sum alone, which wraps round for numbers that are large enough.
  const bool is_possible = nodes.size(0) <= z.size(0) && nodes.min().item<std::int64_t>() > 0 &&
                           nodes.max().item<std::int64_t>() <= z.size(0);
  if (!is_possible || nodes.sum().item<std::int64_t>() != z.size(0))
    throw InputError("num_nodes: each crystal has an atom at least, and together they have those of z, " +
                     std::to_string(z.size(0)));
  const auto lowest = z.min().item<std::int64_t>(), highest = z.max().item<std::int64_t>();
  if (lowest < 1 || highest > MAX_Z)
    throw InputError("z: atomic numbers go from 1 to " + std::to_string(MAX_Z) + ", there is " + std::to_string(lowest) +
                     " and " + std::to_string(highest));
  if (edges.numel() && (edges.min().item<std::int64_t>() < 0 || edges.max().item<std::int64_t>() >= z.size(0)))
    throw InputError("edge_index: atoms are 0 to " + std::to_string(z.size(0) - 1));
  const at::Tensor crystal = at::repeat_interleave(nodes).index_select(0, edges.flatten()).view_as(edges);
  if (!crystal[0].equal(crystal[1])) throw InputError("edge_index: an edge leads from one crystal to another");
  if (!at::logical_and(distance.isfinite(), distance > 0).all().item<bool>())
    throw InputError("distance: must be above 0 and finite, in angstrom");
}

std::map<std::string, at::Tensor> Model::operator()(const std::vector<at::Tensor>& inputs) {
  check(inputs);
  std::vector<at::Tensor> contiguous;
  for (const auto& input : inputs) contiguous.push_back(input.contiguous());
  const c10::InferenceMode without_gradients;
  const auto found = loader_->run(contiguous);
  std::map<std::string, at::Tensor> outputs;
  const auto names = entries("outputs");
  const auto width = static_cast<std::int64_t>(entries(names.size() == 1 ? "target_names" : "class_names").size());
  for (std::size_t number = 0; number < names.size(); ++number) {
    if (found.size() != names.size() || found[number].dim() != 2 || found[number].size(1) != width)
      throw InputError("the card does not fit the program: it was changed after the export");
    outputs[names[number]] = found[number].contiguous();
  }
  return outputs;
}

std::vector<std::string> Model::lines(
    const std::string& name, const std::map<std::string, at::Tensor>& outputs, std::size_t top) const {
  const bool regression = card_.at("task") == "regression";
  const at::Tensor& values = outputs.at(regression ? "prediction" : "probabilities");
  auto labels = entries(regression ? "target_names" : "class_names");
  auto units = entries("target_units");
  units.resize(labels.size());
  std::vector<std::string> lines;
  for (std::int64_t sample = 0; sample < values.size(0); ++sample) {
    const float* row = values.data_ptr<float>() + sample * values.size(1);
    std::vector<std::size_t> order(labels.size());
    std::iota(order.begin(), order.end(), 0);
    if (!regression) {
      std::stable_sort(order.begin(), order.end(), [&](auto one, auto other) { return row[one] > row[other]; });
      order.resize(std::min(top, order.size()));
    }
    std::string line = values.size(0) == 1 ? name : name + "[" + std::to_string(sample) + "]";
    for (const auto entry : order) {
      line.append("\t").append(labels[entry]);
      if (regression && !units[entry].empty()) line.append(" (").append(units[entry]).append(")");
      line.append("\t").append(format(regression ? "%.7g" : "%.6f", row[entry]));
    }
    lines.push_back(line);
  }
  return lines;
}
