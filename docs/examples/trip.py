"""Three objects for ``ipcbus check``: one travels, one cannot be rebuilt, one cannot be encoded."""

plan = {"from": "Ghent", "to": "Graz", "stops": ["Cologne", "Passau"]}


class Detour(Exception):
    def __init__(self, place: str, minutes: int) -> None:
        super().__init__(f"{minutes} minutes more, by way of {place}")


class Ticket:
    def __init__(self) -> None:
        self.number = 7
        self.stamp = lambda: "used"


detour = Detour("Wels", 25)
ticket = Ticket()
