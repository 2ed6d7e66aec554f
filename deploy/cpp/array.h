// NumPy's .npy files of the three types that models take.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>

// Reads an array of uint8, int64 or float32. Throws InputError.
at::Tensor read_array(const std::filesystem::path& path);
