// What the person can mend: a message, and exit code 2.
#pragma once

#include <stdexcept>
#include <string>

struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
