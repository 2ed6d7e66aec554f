// PNG and JPEG files, decoded as Pillow decodes them.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>

// Reads a picture as uint8 [height, width, channels], of 1 channel (grey) or 3 (red, green, blue).
// Throws InputError: it is none, of another size, transparent, of more than 8 bits a channel, or damaged.
at::Tensor read_picture(const std::filesystem::path& path, int channels, int height, int width);
