// generated from rosidl_generator_c/resource/idl.h.em
// with input from tf2_msgs:msg/TFMessage.idl
// generated code does not contain a copyright notice

#ifndef TF2_MSGS__MSG__TF_MESSAGE_H_
#define TF2_MSGS__MSG__TF_MESSAGE_H_

#include "tf2_msgs/msg/detail/tf_message__struct.h"
#include "tf2_msgs/msg/detail/tf_message__functions.h"
#include "tf2_msgs/msg/detail/tf_message__type_support.h"

#endif  // TF2_MSGS__MSG__TF_MESSAGE_H_
