"""The proof on real blocks: small networks of several families, their spectra, and the products that an error takes."""
