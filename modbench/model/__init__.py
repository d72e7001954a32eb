"""What is measured: the shared decoder, and the contract that routers keep."""
