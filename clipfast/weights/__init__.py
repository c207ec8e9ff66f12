"""Weights in every form that CLIP's come in: OpenAI's, open_clip's and Hugging Face's."""
