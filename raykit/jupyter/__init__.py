"""What is seen in a notebook: magics, widgets and tables."""
