"""From the reference a user gives to a graph of tensor operations."""
