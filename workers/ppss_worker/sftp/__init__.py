"""Files of a master that has no PPSS, only SFTP."""
