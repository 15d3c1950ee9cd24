"""DreamerV3: world model, actor and critic, replay, and the agent that is made of them."""
