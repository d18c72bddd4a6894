# SPDX-License-Identifier: Apache-2.0
# Fabrics around fabrics.  Linked by ibnbd-server (off unless asked for) and by tests.
ibnbd_library(NAME ibnbd_fabric_decorators
  SRCS fault_spec.cc faulty_fabric.cc forwarding_fabric.cc traced_fabric.cc
  HDRS faulty_fabric.h forwarding_fabric.h traced_fabric.h
  DEPS ibnbd_base ibnbd_reactor absl::status absl::statusor absl::strings)
ibnbd_test(NAME faulty_fabric_test SRCS faulty_fabric_test.cc
  DEPS ibnbd_fabric_decorators ibnbd_fabric_sim)
ibnbd_test(NAME traced_fabric_test SRCS traced_fabric_test.cc
  DEPS ibnbd_fabric_decorators ibnbd_fabric_sim)

# The simulator and the decorators are held to the contract too.
if(TARGET fabric_conformance_test)
  target_sources(fabric_conformance_test PRIVATE
    ${CMAKE_CURRENT_LIST_DIR}/decorated_conformance_worlds.cc)
  target_link_libraries(fabric_conformance_test PRIVATE ibnbd_fabric_decorators ibnbd_fabric_sim)
endif()
