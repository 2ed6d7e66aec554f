// A model that `python -m src.export format=aoti` has written, and what it says of itself.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <filesystem>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

// A compiled program checks nothing: of a wrong type, size or layout it makes plausible nonsense. This class does.
class Model {
 public:
  // Throws InputError: there is no such file, it is no package, or it has no card.
  explicit Model(const std::filesystem::path& path);

  // Reads a picture, a .npy file of one sample or several, or a folder with a .npy file for every input.
  // Returns the inputs in the model's order. Throws InputError.
  std::vector<at::Tensor> read(const std::filesystem::path& path) const;

  // Returns the outputs by name. Throws InputError: an input has another type or shape than the model takes.
  std::map<std::string, at::Tensor> operator()(const std::vector<at::Tensor>& inputs);

  // What is printed of some samples: name, then classes and probabilities or targets and values, apart by tabs.
  std::vector<std::string> lines(
      const std::string& name, const std::map<std::string, at::Tensor>& outputs, std::size_t top) const;

 private:
  struct Input {
    std::string name;
    std::vector<std::string> shape;  // numbers, or names of lengths that vary
  };

  std::vector<std::string> entries(const std::string& key) const;
  void check_card(const std::string& path) const;
  void check(const std::vector<at::Tensor>& inputs) const;
  void check_crystals(const std::vector<at::Tensor>& inputs) const;

  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
  std::unordered_map<std::string, std::string> card_;
  std::vector<Input> inputs_;
};
