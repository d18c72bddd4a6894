# SPDX-License-Identifier: Apache-2.0
# What an operator gets beside the programs: systemd units, the udev rule and an example of the server's configuration.
# The units in packaging/ name the programs as a distribution installs them; here they name this prefix.
set(unit_directory ${CMAKE_BINARY_DIR}/packaging)
file(GLOB units CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/packaging/*.service ${CMAKE_SOURCE_DIR}/packaging/*.socket)
foreach(unit IN LISTS units)
  file(READ ${unit} text)
  string(REPLACE "/usr/bin/" "${CMAKE_INSTALL_FULL_BINDIR}/" text "${text}")
  string(REPLACE "/usr/sbin/" "${CMAKE_INSTALL_FULL_SBINDIR}/" text "${text}")
  get_filename_component(name ${unit} NAME)
  file(WRITE ${unit_directory}/${name} "${text}")
  install(FILES ${unit_directory}/${name} DESTINATION lib/systemd/system COMPONENT programs)
endforeach()
install(FILES ${CMAKE_SOURCE_DIR}/packaging/60-ibnbd.rules DESTINATION lib/udev/rules.d COMPONENT programs)
install(FILES ${CMAKE_SOURCE_DIR}/packaging/ibnbd-server.toml
  DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples COMPONENT programs)
