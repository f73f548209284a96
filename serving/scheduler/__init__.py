"""Who goes next, and where: a fair queue before the fleet, placement and leases."""
