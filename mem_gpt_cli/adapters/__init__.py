"""Small trainable matrices beside frozen weights."""
