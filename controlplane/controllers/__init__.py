"""What runs beside the API in every replica, each controller in one replica at a time."""
