"""Black-box cases, written from the contract alone. A package, so that its one server ends with it."""
