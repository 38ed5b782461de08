"""What operators run by hand, on a file or on etcd, without the API: commands of `kumi` found by their entry point."""
