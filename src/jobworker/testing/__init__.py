"""Stand-ins for the kernel's interfaces that behave like them, for tests of code on top."""
