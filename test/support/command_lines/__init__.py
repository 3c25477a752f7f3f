"""What is typed for `sqap-vla`, in tests."""
