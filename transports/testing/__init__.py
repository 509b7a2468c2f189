"""What tests of a transport mode, and of its users, need: contract suites, fakes, faults."""
