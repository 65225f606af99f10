"""The MoMKD model: encoders, momentum memory and losses. Imports no Ray."""
