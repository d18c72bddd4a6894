// SPDX-License-Identifier: Apache-2.0
// A program of a stranger, in C++.
#include <ibnbd/ibnbd.h>

#include <iostream>

int main() {
  ibnbd_session* session = nullptr;
  if (ibnbd_session_open("nonsense", nullptr, &session) >= 0) return 1;
  std::cout << "C++: libibnbd " << ibnbd_version() << " says: " << ibnbd_error_message() << '\n';
  return 0;
}
