"""Images from what the network itself knows."""
