"""What models are evaluated on: labelled images and captioned images, from wherever they are."""
