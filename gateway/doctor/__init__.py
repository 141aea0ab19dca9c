"""`gateway doctor`: what would keep the gateway from starting or serving well here, each with a remedy."""
