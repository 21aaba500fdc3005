"""From grades to decisions: agreement, calibration, selection."""
