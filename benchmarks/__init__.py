"""One file for each published table or claim; results are kept beside it as JSON."""
