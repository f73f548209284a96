"""Which engines exist and are well."""
