"""HTTP: encoding and decoding, the two transports, their connections and failures."""
