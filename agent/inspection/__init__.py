"""What others may ask an agent: questions that only read, over mutual TLS (service.py), and the answers (look.py)."""
