"""What jobs need of the machine: files that appear whole, locks, devices, costs, signals, units."""
