"""The training machinery; knows neither the mathematics nor diffusers."""
