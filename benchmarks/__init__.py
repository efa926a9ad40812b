"""Measurements of codecs against their peers and against the limit. No part of the installation."""
