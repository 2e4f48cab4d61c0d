"""What a transport's author needs: the contract as check functions, fault tools and leak checks."""
