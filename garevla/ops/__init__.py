"""One name per operation; backends that implement it."""
