# generated from rosidl_cmake/cmake/rosidl_cmake-extras.cmake.in

set(tf2_msgs_IDL_FILES "msg/TFMessage.idl")
set(tf2_msgs_INTERFACE_FILES "msg/TFMessage.msg")
