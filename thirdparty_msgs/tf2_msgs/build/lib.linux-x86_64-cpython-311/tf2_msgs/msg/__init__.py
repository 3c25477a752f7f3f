from tf2_msgs.msg._tf_message import TFMessage  # noqa: F401
