"""A trained model as a folder for others: plain JSON and safetensors, nothing in it that is executed."""
