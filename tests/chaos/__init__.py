"""What must hold while parts die: histories, exact numbers, cut exchanges, watches. Real etcd clusters, real API processes."""
