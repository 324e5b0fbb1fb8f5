"""What helps the tests of this folder lies in it, and serves those of the folders below."""
