"""One vision-language model out of three parts."""
