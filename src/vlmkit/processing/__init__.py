"""Conversation to tensors: the one path that training and generation share."""
