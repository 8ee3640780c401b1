"""What a step costs in time and memory, on devices that are here and on those that are not."""
