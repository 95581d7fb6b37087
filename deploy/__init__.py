"""Running the whole system from docker-compose.yml, with Docker or without it."""
