// portable MODEL.pt2 INPUT... [--top K] [--repeat N]: what a model makes of pictures, arrays and crystals.

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "error.h"
#include "model.h"

namespace {

// glibc gives what a layer frees back to the system and faults it in again for the next: two thirds more time.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_TRIM_THRESHOLD, 2147483647);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest that it takes
#endif
}

constexpr const char* USAGE =
    "usage: portable MODEL.pt2 INPUT... [--top 3] [--repeat N]\n"
    "MODEL.pt2 comes from `python -m src.export format=aoti`. INPUT is a PNG or JPEG file of the model's size, a .npy\n"
    "file of one sample or several, or a folder with a .npy file for every input of the model. A line for each sample:\n"
    "its name, and the classes with the highest probabilities or the values, apart by tabs. --repeat computes every\n"
    "input N times more and says how fast that was.\n";

std::size_t number(const std::string& flag, const char* text) {
  try {
    std::size_t end = 0;
    const long value = std::stol(text ? text : "", &end);
    if (value >= 1 && text[end] == 0) return static_cast<std::size_t>(value);
  } catch (const std::logic_error&) {  // what stol throws
  }
  throw InputError(flag + ": a whole number of at least 1 is wanted");
}

void run(int count, char** words) {
  std::vector<std::string> paths;
  std::size_t top = 3, repeat = 0;
  for (int word = 1; word < count; ++word) {
    const std::string text = words[word];
    if (text == "--top") top = number(text, words[++word]);
    else if (text == "--repeat") repeat = number(text, words[++word]);
    else if (text.starts_with("--")) throw InputError(text + ": there is no such flag\n" + USAGE);
    else paths.push_back(text);
  }
  if (paths.size() < 2) throw InputError(std::string("a model and an input are wanted\n") + USAGE);
  Model model(paths[0]);
  for (std::size_t index = 1; index < paths.size(); ++index) {
    const std::string& path = paths[index];
    try {
      const auto inputs = model.read(path);
      const auto outputs = model(inputs);
      for (const auto& line : model.lines(std::filesystem::path(path).filename().string(), outputs, top))
        std::cout << line << "\n";
      std::cout.flush();
      if (repeat) {
        const auto begin = std::chrono::steady_clock::now();
        for (std::size_t turn = 0; turn < repeat; ++turn) model(inputs);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
        const auto samples = static_cast<double>(outputs.begin()->second.size(0) * repeat);
        std::cerr << path << ": " << samples / seconds.count() << " samples/s\n";
      }
    } catch (const InputError& error) {
      const std::string text = error.what();
      throw InputError(text.starts_with(path) ? text : path + ": " + text);
    }
  }
}

}  // namespace

int main(int count, char** words) {
  if (count > 1 && (std::string(words[1]) == "--help" || std::string(words[1]) == "-h")) {
    std::cout << USAGE;
    return 0;
  }
  keep_freed_memory();
  try {
    run(count, words);
  } catch (const InputError& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {  // of torch, whose messages go on with where it happened
    const std::string text = error.what();
    std::cerr << "error: the model failed: " << text.substr(0, text.find('\n')) << "\n";
    return 1;
  }
  return 0;
}
