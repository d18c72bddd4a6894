# SPDX-License-Identifier: Apache-2.0
# What a consumer of the library gets: the shared library, one header, the CMake package, the
# pkg-config file and the man pages.  The API is C: nothing that the library uses leaks out.
include(CMakePackageConfigHelpers)

install(TARGETS ibnbd EXPORT ibnbd-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT development
  PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ibnbd COMPONENT development)
install(EXPORT ibnbd-targets NAMESPACE ibnbd::
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ibnbd COMPONENT development)

configure_package_config_file(${CMAKE_SOURCE_DIR}/cmake/ibnbd-config.cmake.in
  ${CMAKE_BINARY_DIR}/ibnbd-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ibnbd)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/ibnbd-config-version.cmake
  COMPATIBILITY SameMinorVersion)
configure_file(${CMAKE_SOURCE_DIR}/cmake/ibnbd.pc.in ${CMAKE_BINARY_DIR}/ibnbd.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/ibnbd-config.cmake ${CMAKE_BINARY_DIR}/ibnbd-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ibnbd COMPONENT development)
install(FILES ${CMAKE_BINARY_DIR}/ibnbd.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT development)

install(DIRECTORY ${CMAKE_SOURCE_DIR}/man/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man3
  COMPONENT development FILES_MATCHING PATTERN "*.3")
install(DIRECTORY ${CMAKE_SOURCE_DIR}/man/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man8
  COMPONENT programs FILES_MATCHING PATTERN "*.8")
