"""Every touch of Ray Train, its private parts among them; tests/ray/test_raytrain_contract.py pins those on Ray 2.60."""
