#include "picture.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include <jpeglib.h>  // after <cstdio>, whose FILE it takes for granted
#include <jerror.h>
#include <png.h>

#include "error.h"

namespace {

struct Closer {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Closer>;

struct Wanted {
  std::string path;
  int height, width;

  void check(unsigned long there_height, unsigned long there_width) const {
    if (there_height != static_cast<unsigned long>(height) || there_width != static_cast<unsigned long>(width))
      throw InputError(path + ": is " + std::to_string(there_width) + " x " + std::to_string(there_height) +
                       ", the model takes " + std::to_string(width) + " x " + std::to_string(height));
  }
};

constexpr const char* TURNED = "is to be turned, by its EXIF data; turn its pixels first";

// Whether EXIF data (TIFF) have an orientation other than upright.
bool is_turned(const unsigned char* data, std::size_t size) {
  const bool is_little = size > 1 && data[0] == 'I';
  const auto number = [&](std::size_t at, int bytes) -> std::uint32_t {
    std::uint32_t value = 0;
    for (int byte = 0; byte < bytes; ++byte)
      value |= std::uint32_t{data[at + byte]} << 8 * (is_little ? byte : bytes - 1 - byte);
    return value;
  };
  const std::size_t directory = size >= 8 ? number(4, 4) : size;
  if (directory + 2 > size) return false;
  const std::size_t count = number(directory, 2);
  for (std::size_t entry = directory + 2; entry + 12 <= std::min(size, directory + 2 + 12 * count); entry += 12)
    if (number(entry, 2) == 0x0112) return number(entry + 8, 2) > 1 && number(entry + 8, 2) < 9;
  return false;
}

// Both libraries report errors by a jump, across which nothing may live that has a destructor: each function below
// gets its memory from outside, and says in `fault` what went wrong.

void read_png(std::FILE* file, const Wanted& wanted, std::vector<unsigned char>& pixels, std::string& fault) {
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &fault,
      [](png_structp reader, png_const_charp message) {
        *static_cast<std::string*>(png_get_error_ptr(reader)) = std::string("is damaged: ") + message;
        png_longjmp(reader, 1);
      },
      [](png_structp, png_const_charp) {});
  png_infop info = png_create_info_struct(png);
  if (setjmp(png_jmpbuf(png))) {
    png_destroy_read_struct(&png, &info, nullptr);
    return;
  }
  png_init_io(png, file);
  png_read_info(png, info);
  if (png_get_image_height(png, info) != static_cast<unsigned>(wanted.height) ||
      png_get_image_width(png, info) != static_cast<unsigned>(wanted.width)) {
    const auto height = png_get_image_height(png, info), width = png_get_image_width(png, info);
    png_destroy_read_struct(&png, &info, nullptr);
    wanted.check(height, width);
  }
  if (png_get_color_type(png, info) & PNG_COLOR_MASK_ALPHA || png_get_valid(png, info, PNG_INFO_tRNS))
    fault = "is transparent; lay it on a background first";
  else if (png_get_bit_depth(png, info) > 8)
    fault = "has more than 8 bits a channel; convert it to RGB first";
  png_uint_32 length = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(png, info, &length, &exif) && is_turned(exif, length)) fault = TURNED;
  if (!fault.empty()) {
    png_destroy_read_struct(&png, &info, nullptr);
    return;
  }
  png_set_expand(png);  // palettes to colours, 1 to 4 bits to 8
  png_set_gray_to_rgb(png);
  const int passes = png_set_interlace_handling(png);
  png_read_update_info(png, info);
  for (int pass = 0; pass < passes; ++pass)
    for (int row = 0; row < wanted.height; ++row) png_read_row(png, pixels.data() + row * wanted.width * 3, nullptr);
  png_read_end(png, nullptr);
  png_destroy_read_struct(&png, &info, nullptr);
}

struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf jump;
  std::string* fault;
};

void fail_jpeg(j_common_ptr reader) {
  auto* errors = reinterpret_cast<JpegErrors*>(reader->err);
  char text[JMSG_LENGTH_MAX];
  reader->err->format_message(reader, text);
  *errors->fault = std::string("is damaged: ") + text;
  std::longjmp(errors->jump, 1);
}

void read_jpeg(std::FILE* file, const Wanted& wanted, std::vector<unsigned char>& pixels, std::string& fault) {
  jpeg_decompress_struct reader;
  JpegErrors errors;
  reader.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = fail_jpeg;
  errors.manager.emit_message = [](j_common_ptr source, int level) {
    if (level < 0 && source->err->msg_code == JWRN_JPEG_EOF) fail_jpeg(source);  // other warnings are of sound pictures
  };
  errors.fault = &fault;
  if (setjmp(errors.jump)) {
    jpeg_destroy_decompress(&reader);
    return;
  }
  jpeg_create_decompress(&reader);
  jpeg_stdio_src(&reader, file);
  jpeg_save_markers(&reader, JPEG_APP0 + 1, 0xffff);
  jpeg_read_header(&reader, TRUE);
  if (reader.image_height != static_cast<unsigned>(wanted.height) ||
      reader.image_width != static_cast<unsigned>(wanted.width)) {
    const auto height = reader.image_height, width = reader.image_width;
    jpeg_destroy_decompress(&reader);
    wanted.check(height, width);
  }
  if (reader.num_components == 4) {
    fault = "is CMYK; convert it to RGB first";
    jpeg_destroy_decompress(&reader);
    return;
  }
  for (auto* marker = reader.marker_list; marker; marker = marker->next)
    if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0 &&
        is_turned(marker->data + 6, marker->data_length - 6))
      fault = TURNED;
  if (!fault.empty()) {
    jpeg_destroy_decompress(&reader);
    return;
  }
  reader.out_color_space = JCS_RGB;
  jpeg_start_decompress(&reader);
  while (reader.output_scanline < reader.output_height) {
    unsigned char* row = pixels.data() + reader.output_scanline * wanted.width * 3;
    jpeg_read_scanlines(&reader, &row, 1);
  }
  jpeg_finish_decompress(&reader);
  jpeg_destroy_decompress(&reader);
}

}  // namespace

at::Tensor read_picture(const std::filesystem::path& path, int channels, int height, int width) {
  const Wanted wanted{path.string(), height, width};
  std::error_code nothing;
  const File file(std::filesystem::is_regular_file(path, nothing) ? std::fopen(path.c_str(), "rb") : nullptr);
  if (!file) throw InputError(wanted.path + ": cannot be read");
  unsigned char start[8] = {};
  const auto read = std::fread(start, 1, sizeof(start), file.get());
  std::rewind(file.get());
  std::vector<unsigned char> pixels(static_cast<std::size_t>(height) * width * 3);
  std::string fault;
  if (read == sizeof(start) && png_sig_cmp(start, 0, sizeof(start)) == 0)
    read_png(file.get(), wanted, pixels, fault);
  else if (read > 2 && start[0] == 0xff && start[1] == 0xd8)
    read_jpeg(file.get(), wanted, pixels, fault);
  else
    throw InputError(wanted.path + ": is neither PNG nor JPEG");
  if (!fault.empty()) throw InputError(wanted.path + ": " + fault);

  at::Tensor picture = at::empty({height, width, channels}, at::kByte);
  auto* out = picture.data_ptr<std::uint8_t>();
  for (std::size_t pixel = 0; pixel < pixels.size() / 3; ++pixel) {
    const unsigned char* rgb = pixels.data() + 3 * pixel;
    if (channels == 1)  // ITU-R BT.601 in 16 bits, as Pillow rounds it
      out[pixel] = (rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16;
    else
      for (int channel = 0; channel < 3; ++channel) out[3 * pixel + channel] = rgb[channel];
  }
  return picture;
}
