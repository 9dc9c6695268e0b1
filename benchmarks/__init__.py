"""The benchmarks behind the project's claims: `python -m benchmarks NAME`, from the root of a checkout."""
